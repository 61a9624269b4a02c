"""Every method's learning rate and weight decay, chosen with equal budgets; then who is better.

grid       where a search begins and where it looks further
halving    which trials go on at a rung
plan       what is known -> what is to be done next
trials     trials and final trainings as run folders
paired     differences by seed and test image, with intervals
record     search.json, its sentences and search.csv
search     the processes that share the work
cost       what it will take at most
"""

from bpt.search.cost import SearchCost, search_costs
from bpt.search.options import SearchOptions
from bpt.search.paired import Difference, paired_difference
from bpt.search.recipes import search_base, search_folder
from bpt.search.search import search_devices, search_methods

__all__ = [
    "Difference",
    "SearchCost",
    "SearchOptions",
    "paired_difference",
    "search_base",
    "search_costs",
    "search_devices",
    "search_folder",
    "search_methods",
]
