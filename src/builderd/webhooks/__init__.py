"""Webhooks: subscriptions, delivery and webhook retry."""
