"""Tail-aware evaluation."""
