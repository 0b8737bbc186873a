"""Tests that share one pilot, because starting one takes half a minute."""
