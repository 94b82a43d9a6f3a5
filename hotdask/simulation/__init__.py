"""Surveys that never were: stars with known labels, written as LAMOST files, some of them broken."""
