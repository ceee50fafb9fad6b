"""Comparisons and their images become one self-contained HTML page. Knows no model; reads Results."""

from trimtok_cli.report.page import write_page

__all__ = ["write_page"]
