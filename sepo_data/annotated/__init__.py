"""The annotated dataset: manifest, card, health, opening, publishing. Knows no models and no tokenizers."""
