"""Answers as text: tables for people, JSON for programs. Both show the same document."""
