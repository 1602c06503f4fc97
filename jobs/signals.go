package jobs

import "time"

// Signals is what a machine tells of itself. What is not known is its zero value.
type Signals struct {
	Others  float64       `json:"others"`       // processors that processes take which are not the farm's
	Stall   float64       `json:"memory_stall"` // percent of the time that something waited for memory
	Idle    time.Duration `json:"idle_ns"`      // since somebody has last done something at the machine
	Person  bool          `json:"person"`       // Idle is known
	Battery bool          `json:"battery"`      // there is no mains
}
