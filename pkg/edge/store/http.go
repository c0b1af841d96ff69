package store

import (
	"encoding/json"
	"net/http"
)

// Handler serves what `skerry store` asks of a running agent; it belongs on a
// socket that only root can open.
//
//	GET /store/inspect?resource=&namespace=&data=true   one Record a line, as JSON
//	GET /store/verify                                   a Report
//
// An error after the first line is a last line with a Problem.
func (s *Store) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /store/inspect", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		w.Header().Set("Content-Type", "application/x-ndjson")
		enc := json.NewEncoder(w)
		o := InspectOptions{Resource: q.Get("resource"), Namespace: q.Get("namespace"), Data: q.Get("data") == "true"}
		if err := s.Inspect(r.Context(), o, func(rec Record) error { return enc.Encode(rec) }); err != nil {
			_ = enc.Encode(Record{Problem: err.Error()})
		}
	})
	mux.HandleFunc("GET /store/verify", func(w http.ResponseWriter, _ *http.Request) {
		report, err := s.Verify()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(report)
	})
	return mux
}
