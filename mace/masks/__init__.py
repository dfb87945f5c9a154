"""Where in a picture a concept is."""
