"""Commands that use images: containers, and what runs in them."""
