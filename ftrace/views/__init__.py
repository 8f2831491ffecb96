"""What a person sees of scores: a query, its strongest examples with their texts, several stores side by side."""
