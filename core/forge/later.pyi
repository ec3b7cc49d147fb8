from forge import checkup as checkup
from forge import doctor as doctor
from forge import measuring as measuring
from forge import proof as proof
from forge import proving as proving
from forge import recovery as recovery
from forge import turnover as turnover
from forge import upkeep as upkeep
from forge.benching import driving as driving
from forge.benching import page as page
from forge.benching import results as results
from forge.benching import watching as watching
from forge.benching import wish as wish
from forge.benching import workload as workload
from forge.verifying import interviews as interviews
from forge.verifying import recitals as recitals
from forge.verifying import report as report

ROOMS: dict[str, str]
