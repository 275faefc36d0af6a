"""Compartmentalised diffusion models: one model or adapter for each source of data, composed while
sampling (Golatkar et al., 2024), so that a source or a record is forgotten exactly.
"""
