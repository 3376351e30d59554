"""Prices, the ledger of what builders cost, quotas and spending caps."""
