"""Imported by the server that forks a pool's processes, and by nothing else: a signal to the group leaves it standing.

A terminal and a service manager signal the whole group. Were the server to end, the pool would take its processes for
dead, while the program itself still decides when the work ends. It ends with the program, whose pipe it waits on.
"""

import signal

for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, signal.SIG_IGN)
