"""The names of what is measured, as tables and plots have them."""

OURS, BATCH, SMALL = "Ptolemy", "Ptolemy, batch tier", "Ptolemy, 64 kB buffer"
NGINX, LITELLM, DIRECT = "nginx", "LiteLLM", "direct"
