"""Proofs that others check: a Merkle tree, signed notes, statements of deletion, signed exports."""
