"""What a report says of queries and examples: ranked, listed, told token by token, as chunks."""
