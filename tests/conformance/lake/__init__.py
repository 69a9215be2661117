"""What each case is for ICEBERG_S3, the lake itself: it is written and acknowledged by landing, not by deliveries.

Where a case cannot arise there, its function asserts what makes it impossible.
"""
