"""What is to be erased: a concept, its lines and lists, its prompts."""
