"""The transport alone: messages in, messages out."""
