"""The cases as they are for a destination that is fed by deliveries."""
