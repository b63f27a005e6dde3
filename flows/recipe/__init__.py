"""Recipes: read, admitted, checked, expanded."""
