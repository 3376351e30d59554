"""The shapes that go over the wire, one package a version of the contract."""
