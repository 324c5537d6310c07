"""What a recorded run lost and why, as a page to look at and as figures for a paper."""

from gradscale.report.write import write_report as write_report
