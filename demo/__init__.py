"""Ptolemy's demo model: a small llama that sorts accounting descriptions into categories; see README.md here."""
