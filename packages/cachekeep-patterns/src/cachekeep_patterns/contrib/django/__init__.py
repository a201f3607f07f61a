"""Django: `cachekeep_patterns.contrib.django.sessions` (SESSION_ENGINE) and `….cache.ValkeyCache` (CACHES)."""
