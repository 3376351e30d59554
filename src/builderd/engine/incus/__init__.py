"""The engine for one machine or many: instances and volumes of an Incus server or cluster, over its REST API."""
