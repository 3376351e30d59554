"""Claim, observation, transitions and results, shared by the loop, the stages and the jobs."""
