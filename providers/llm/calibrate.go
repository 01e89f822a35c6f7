package llm

import (
	"math"
	"sync/atomic"
)

// A calibration holds how far the estimates for one model are off, learnt from the usage it reports: languages
// and tokenizers differ by more than the rule of EstimateTokens can know. The zero value knows nothing. Safe for
// concurrent use; of two reports at the same instant one may be forgotten.
type calibration struct {
	bits atomic.Uint64 // of the factor, a float64; 0: 1.0
}

const (
	calibrationWeight = 0.2 // of a new report
	calibrationMin    = 0.5 // factors beyond these are mistakes of the provider
	calibrationMax    = 4.0
	calibrationTokens = 50 // shorter prompts teach nothing
)

func (c *calibration) factor() float64 {
	if b := c.bits.Load(); b != 0 {
		return math.Float64frombits(b)
	}
	return 1
}

// learn takes a reported count and the estimate of the same prompt.
func (c *calibration) learn(reported, estimated int64) {
	if reported <= 0 || estimated < calibrationTokens {
		return
	}
	now := min(max(float64(reported)/float64(estimated), calibrationMin), calibrationMax)
	old := now // the first report is believed at once
	if b := c.bits.Load(); b != 0 {
		old = math.Float64frombits(b)
	}
	c.bits.Store(math.Float64bits(old + calibrationWeight*(now-old)))
}

// scale corrects an estimate, of which the provider may have counted the prompt.
func (c *calibration) scale(u Usage, counted bool) Usage {
	f := c.factor()
	if !counted {
		u.In = int64(math.Round(float64(u.In) * f))
	}
	u.Out = int64(math.Round(float64(u.Out) * f))
	u.Total = u.In + u.Out
	return u
}
