package e2e

// last returns the newest other frame of a type. With u.mu held.
func (u *user) last(typ string) *frame {
	for i := len(u.frames) - 1; i >= 0; i-- {
		if u.frames[i].Type == typ {
			return &u.frames[i]
		}
	}
	return nil
}

func (u *user) at() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.seq
}

// newest is the seq of the newest event. The session may be further: a new epoch begins above all that was given.
func (u *user) newest() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.events) == 0 {
		return 0
	}
	return u.events[len(u.events)-1].Seq
}

// refusals counts the errors that answer a message. With u.mu held.
func (u *user) refusals(id string) int {
	n := 0
	for _, f := range u.frames {
		if f.Type == "error" && f.MessageID == id {
			n++
		}
	}
	return n
}
