"""Prices, the ledger of costs, quotas and spending caps."""
