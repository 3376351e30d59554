"""Version 1 of the contract, under ``/api/v1``."""
