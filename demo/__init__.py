"""Ptolemy's demo model: a small llama that sorts accounting descriptions into categories; see docs/demo-model.md."""
