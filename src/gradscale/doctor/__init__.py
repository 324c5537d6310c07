"""What a saved scaler state means and what is wrong with it, of ours and of other systems.

Nothing that a file holds is ever run: pickled objects are read as names and plain data.
"""

from gradscale.doctor.diagnosis import Diagnosis as Diagnosis
from gradscale.doctor.examine import examine as examine
from gradscale.doctor.finding import Finding as Finding
from gradscale.doctor.patient import Patient as Patient
from gradscale.doctor.patient import PlanFacts as PlanFacts
from gradscale.doctor.patient import Skips as Skips
