"""What all services share: from a call to its handler, pages, quotas, errands; nothing of any one of them."""
