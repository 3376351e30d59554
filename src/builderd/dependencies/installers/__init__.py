"""Installers: plan the layer for a bundle's dependencies."""
