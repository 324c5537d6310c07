"""What a saved scaler state means and what is wrong with it, of ours and of other systems.

Nothing that a file holds is ever run: pickled objects are read as names and plain data.
"""

from gradscale.doctor.diagnosis import Diagnosis as Diagnosis
from gradscale.doctor.examine import examine as examine
from gradscale.doctor.examined_scaler import Patient as Patient
from gradscale.doctor.examined_scaler import PlanFacts as PlanFacts
from gradscale.doctor.examined_scaler import Skips as Skips
from gradscale.doctor.finding import Finding as Finding
