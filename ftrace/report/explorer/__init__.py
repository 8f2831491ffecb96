"""The explorer: scores with their texts as a page that opens by double-click."""
