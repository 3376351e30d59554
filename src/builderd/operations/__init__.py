"""Operations: what all interfaces share above the services, such as retries, limits, and calls in progress."""
