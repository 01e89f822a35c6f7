package config

// Budget bounds what users can cost at the providers.
type Budget struct {
	// Tokens that one user may spend a day (UTC), prompts and answers together, counted over all replicas. Beyond it messages get BUDGET_EXCEEDED until the next day; an answer that has begun is finished. Admins are not counted. 0: any number, because what a token costs differs by a hundred times between models. A short question in a long conversation sends up to context_tokens: 200000 are some 20 of them, or some 200 in short ones.
	TokensPerDay int `toml:"tokens_per_day" default:"0"`
}

func (l *loader) budget(b Budget) {
	const most = 1 << 50
	l.check(b.TokensPerDay >= 0 && b.TokensPerDay <= most, "chatbox.budget.tokens_per_day",
		"must be 0 to %d, is %d", int64(most), b.TokensPerDay)
}
