"""The report's standing words: how a finding was made, from what source; how to read a chart."""

WINNER = """<p class="method">Method: each setting's mean score is drawn 4,000 times with the
seeds' pooled deviation (a parametric bootstrap; Efron and Tibshirani, 1993); counted is how often
the winner is above the runner-up, and above all. A score that was chosen for being the highest
flatters: by how much is the mean of the same draws. Other validation pictures would change all
scores together, which is not in these numbers.</p>"""
SPENT = """<p>Up and to the left is better. The dotted line is the Pareto front: the best score that
so much compute has bought. Open circles were stopped early. Hover for the setting; drag to zoom,
double-click to go back.</p>"""
TABLE = "<p>Click on a heading to sort. The order at first: the best score, failed trials last.</p>"
IMPORTANCE = """<p class="method">Method: functional ANOVA (Hutter, Hoos and Leyton-Brown, ICML
2014) of a second-order response surface (Box and Wilson, 1951) over the ranks of the values; the
share that noise alone would give is taken off (omega squared: Hays, 1963), so a parameter without
effect is at 0. A pair's share is what it does beyond the sum of its two. A setting's score is the
mean of its seeds. Lines are 95 % intervals of a bootstrap of the settings' residuals (Freedman,
1981); they hold for the settings tried.</p>"""
EQUAL_COST = """<p class="method">Method: pairs of settings that are equal in all but the plan,
whose FLOP a picture differ by 5 % at most and whose share of LoRA among the learning layers
differs by a fifth or more. Score difference over share difference by least squares, with what is
left of the cost difference beside it; intervals by a bootstrap over settings, since one setting is
in many pairs (Field and Welsh, 2007). Bands are quarters of the pairs by cost; those with fewer
than 6 settings are left out.</p>"""
WIDTHS = """<p class="method">Method: differences within settings that are equal in all but the
head's width; Student's 95 % interval for paired differences. Unpaired means would favour a
width that happened to be tried with better plans.</p>"""
