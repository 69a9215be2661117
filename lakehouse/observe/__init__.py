"""Seeing inside: one structured event for each unit of work, and figures for Prometheus.

An event is one JSON line on stderr with everything that is known about the unit (organization, table, rows, bytes,
milliseconds, snapshot, outcome), so that questions nobody thought of can be asked of the log. What an event
carries is redacted of secrets first.
"""
