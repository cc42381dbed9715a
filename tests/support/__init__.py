"""Builders, fakes and guards that tests share."""
