package runner

import "time"

// SetPatience makes the runner's own deadline follow the guest's sooner.
func (j *Job) SetPatience(d time.Duration) { j.patience = d }
