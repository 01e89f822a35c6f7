package llm

import (
	"fmt"
	"net/http"
	"slices"
)

// knownType says whether the settings may name a type of provider.
func knownType(typ string) bool {
	switch typ {
	case TypeOpenAI, TypeAnthropic, TypeDify:
		return true
	default:
		return false
	}
}

// newProvider makes the adapter that speaks with the service of an entry, and what gives its idle connections up. The
// entry has been checked.
func newProvider(c Config, transport http.RoundTripper) (Provider, func(), error) {
	switch {
	case c.Type == TypeOpenAI && c.API != APIResponses:
		p, err := newOpenAI(c, transport)
		if err != nil {
			return nil, nil, err
		}
		return p, p.close, nil
	case c.Type == TypeOpenAI:
		p, err := newResponses(c, transport)
		if err != nil {
			return nil, nil, err
		}
		return p, p.close, nil
	case c.Type == TypeAnthropic:
		p, err := newAnthropic(c, transport)
		if err != nil {
			return nil, nil, err
		}
		return p, p.close, nil
	default: // TypeDify
		p, err := newDify(c, transport)
		if err != nil {
			return nil, nil, err
		}
		return p, p.close, nil
	}
}

// checkFallbacks returns all that is wrong with the lists of fallbacks. Each list stands for itself: nothing is followed
// through the lists of others, so two models may well stand in for each other.
func checkFallbacks(list []Config) []error {
	var problems []error
	for i, c := range list {
		for k, id := range c.Fallback {
			switch {
			case id == c.ID:
				problems = append(problems, c.problem(i, "fallback names the model itself"))
			case slices.Contains(c.Fallback[:k], id):
				problems = append(problems, c.problem(i, fmt.Sprintf("fallback names %q twice", id)))
			case !slices.ContainsFunc(list, func(other Config) bool { return other.ID == id }):
				problems = append(problems, c.problem(i, fmt.Sprintf("fallback %q is not the id of a model", id)))
			}
		}
	}
	return problems
}
