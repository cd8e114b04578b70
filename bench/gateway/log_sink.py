#!/usr/bin/env python3
"""Write the datagrams of an inherited socket into a file, as a syslog daemon would: python log_sink.py FD FILE."""

import socket
import sys

with socket.socket(fileno=int(sys.argv[1])) as source, open(sys.argv[2], "wb", buffering=1 << 16) as sink:
    while True:
        sink.write(source.recv(65536) + b"\n")
