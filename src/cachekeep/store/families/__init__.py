"""Records by family: what a transaction can do with each, and how, over SQL (``sql``) and in memory (``memory``)."""
