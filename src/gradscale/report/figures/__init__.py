"""Figures for papers, drawn by matplotlib: heat map, histograms, scale, plan."""

from gradscale.report.figures.save import FIGURES as FIGURES
from gradscale.report.figures.save import draw_figure as draw_figure
from gradscale.report.figures.save import save_figures as save_figures
