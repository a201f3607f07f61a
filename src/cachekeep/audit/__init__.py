"""Who has asked for what: a line for each call of the API, kept in files of the data directory, and read again newest first."""
