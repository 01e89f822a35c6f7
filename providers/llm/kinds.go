package llm

import "net/http"

// knownType says whether the settings may name a type of provider.
func knownType(typ string) bool {
	switch typ {
	case TypeOpenAI, TypeAnthropic, TypeDify:
		return true
	default:
		return false
	}
}

// newProvider makes the adapter that speaks with the service of an entry, and what gives its idle connections up. It
// returns ErrUnavailable for a type that this version cannot talk to. The entry has been checked.
func newProvider(c Config, transport http.RoundTripper) (Provider, func(), error) {
	switch {
	case c.Type == TypeOpenAI && c.API != APIResponses:
		p, err := newOpenAI(c, transport)
		if err != nil {
			return nil, nil, err
		}
		return p, p.close, nil
	case c.Type == TypeDify:
		p, err := newDify(c, transport)
		if err != nil {
			return nil, nil, err
		}
		return p, p.close, nil
	default:
		return nil, nil, ErrUnavailable
	}
}
