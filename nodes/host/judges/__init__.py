"""Models that tell what a picture shows."""
