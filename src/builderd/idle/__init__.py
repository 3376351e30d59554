"""Idle timeout: builders are stopped or frozen without visits, and wake at the next."""
